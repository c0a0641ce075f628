"""What `make docs` adds to the pages under docs/: generated references, formulas, and links that lead out of docs/."""

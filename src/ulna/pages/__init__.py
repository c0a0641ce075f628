"""What the pages share: the look, the parts, charts, pictures inside a page, and the seal by which ulna knows its own."""

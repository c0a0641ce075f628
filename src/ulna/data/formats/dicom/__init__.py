"""DICOM: series of slices to volumes, SEG and RTSTRUCT to label maps, and label maps to both.

pydicom and highdicom come with the extra `dicom` and are imported where a file is read or written. No value that names a
person (name, id, birth date, accession number) is ever put into a message: faults name files, keywords and numbers.
"""

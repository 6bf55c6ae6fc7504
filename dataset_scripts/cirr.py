"""Convert CIRR's official files into datasets in the package's schemas, which plain `load_dataset` reads.

    python dataset_scripts/cirr.py cirr_dataset --output cirr-data

Writes the configs `queries` (QUERY with the column `part`) and `gallery` (GALLERY with the column `part`) for
the splits val and test1. Images are named by their paths and stay where they are; `--embed` copies them in.
"""

from converting import main

if __name__ == "__main__":
    main("cirr", __doc__)

"""Convert FashionIQ's official files into datasets in the package's schemas, which plain `load_dataset` reads.

    python dataset_scripts/fashioniq.py fashion-iq --output fashioniq-data

Writes the configs `queries` (QUERY with the column `part`) and `gallery` (GALLERY with the column `part`) for
the split val. Images stay where they are and are named by their paths; `--embed` copies them into the files.
"""

if __name__ == "__main__":
    from converting import main

    main("fashioniq", __doc__)
else:
    raise ImportError(f"fashioniq.py is a converter, not a loading script of `datasets`. {__doc__}")

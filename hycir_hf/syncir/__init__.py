"""SynCir: pseudo triplets from unlabeled images (paper: Pseudo Triplet Generation).

pairs.py  subgroups of similar images, and the pairs taken from each
"""

from .pairs import find_image_groups, find_image_pairs, pairs_of_groups

__all__ = ["find_image_groups", "find_image_pairs", "pairs_of_groups"]

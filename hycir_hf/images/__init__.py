"""The one way from images to features: sources, the encoding loop, and the store of what was encoded."""

from .feature_cache import FeatureCache, build_feature_cache, check_pictures, preprocessing_fingerprint
from .sources import DatasetSource, FileSource, FolderSource, ImageSource, open_source
from .streams import ImageStream, open_images

__all__ = [
    "DatasetSource",
    "FeatureCache",
    "FileSource",
    "FolderSource",
    "ImageSource",
    "ImageStream",
    "build_feature_cache",
    "check_pictures",
    "open_images",
    "open_source",
    "preprocessing_fingerprint",
]

"""datagen: images and videos in, a region-caption corpus out."""

__version__ = "0.1.0"

"""How each known data set lies on disk: one small file a layout, listed in `vlm.data.sources`."""

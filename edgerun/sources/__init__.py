"""Where models come from: the hub, the registry, the catalogue, local files, and the cache on disk."""

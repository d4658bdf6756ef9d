"""From a model's name to a running pool of engines that answers requests."""

"""Labels audited with a model: regions that are likely mislabelled, and images to label next."""

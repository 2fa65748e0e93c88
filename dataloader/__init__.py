"""Reading images and labels, augmentation, and batches."""

"""Images, data-set layouts, the phantom, batches."""

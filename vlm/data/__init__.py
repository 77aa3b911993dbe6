"""Images, layouts of data sets, the phantom, batches."""

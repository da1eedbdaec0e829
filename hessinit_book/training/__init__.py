"""Training loops, batches and measurements that several chapters share."""

"""Label Studio's ML backend protocol."""

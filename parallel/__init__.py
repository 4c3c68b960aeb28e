"""One model on many devices: from a layout to an engine that steps."""

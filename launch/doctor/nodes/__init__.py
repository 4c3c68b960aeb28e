"""Every node of an allocation, examined at the same time and together."""

"""Starting ranks on this machine, and watching over them."""

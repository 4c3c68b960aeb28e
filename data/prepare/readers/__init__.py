"""From each kind of file to its documents."""

"""What must hold before the first step of a start."""

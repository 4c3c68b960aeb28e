"""What the devices and links of this machine do, measured: one rank of `germinal doctor`."""

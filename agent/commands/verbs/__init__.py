"""What can be ordered, one file for each part of the device."""

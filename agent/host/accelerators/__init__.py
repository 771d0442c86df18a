"""What computes beside the CPU, and how it is: one interface, and who answers it on which board."""

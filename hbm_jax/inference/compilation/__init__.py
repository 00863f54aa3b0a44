"""What is compiled, for which device, and where compiled programs are kept."""

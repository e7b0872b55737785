"""The machine: cores, devices, memory, and libraries that need help to be imported."""

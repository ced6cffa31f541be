"""Images of Linux kernels: crash dumps in the ELF and KDUMP formats."""

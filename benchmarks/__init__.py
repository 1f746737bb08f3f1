"""Every figure that we state, measured on this machine: see README.md beside this file."""

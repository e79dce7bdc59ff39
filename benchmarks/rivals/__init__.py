"""Other projects' runtimes that are measured for comparison, one file each."""

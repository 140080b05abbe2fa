"""The server's own commands of the command line `vorta`; one file each, found through entry points."""

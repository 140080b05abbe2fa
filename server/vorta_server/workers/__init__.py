"""Worker processes: the protocol, the front's channel, the host inside the worker, and the supervisor."""

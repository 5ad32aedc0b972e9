"""Where jobs run: a typed profile of a place, whether a job fits it, and what that place needs to start one."""

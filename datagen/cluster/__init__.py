"""Where jobs run: a typed profile of a place, whether a job fits it, and what that place needs to start one."""

from datagen.cluster.fit import fit
from datagen.cluster.profile import Profile, load_profile

__all__ = ["Profile", "fit", "load_profile"]

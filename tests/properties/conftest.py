"""How long the properties are searched: TOKENFENCE_PROFILE=thorough takes minutes."""

import os

from hypothesis import settings

settings.register_profile("thorough", deadline=None, max_examples=1_000, stateful_step_count=100)
if os.environ.get("TOKENFENCE_PROFILE") == "thorough":
    settings.load_profile("thorough")

"""What all tests share."""

from hypothesis import settings

# A busy machine takes its time: how long an example takes says nothing about whether the code is right.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

"""Differential privacy: gradients of which no example can be told, and what of the budget is spent."""

from .accounting import noise_for_budget as noise_for_budget
from .accounting import privacy_spent as privacy_spent
from .accounting import steps_within as steps_within
from .gradients import PrivateReport as PrivateReport
from .gradients import private_gradients as private_gradients

__all__ = ["noise_for_budget", "privacy_spent", "private_gradients"]

"""cfgen: counterfactual brain MRI (research use, not for diagnosis)."""

__version__ = "0.1.0"

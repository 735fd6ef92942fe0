"""Fitted models side by side: how they fared, and the regression table of a paper."""

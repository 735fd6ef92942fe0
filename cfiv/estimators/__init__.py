"""Estimators: data in, structural function out."""

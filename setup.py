"""Packages of the distribution: everything under gram_hear/, and weights/ as gram_hear.weights."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["gram_hear", "gram_hear.*"]), "gram_hear.weights"])

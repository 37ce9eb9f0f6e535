"""Numba on CUDA: the door."""

from __future__ import annotations

from sce.backend import Answer, BackendError, Problem

on_device: bool = True
debug: bool = False


def refuses(problem: Problem) -> str | None:
    return None


def missing() -> str | None:
    return "this version of sce has no CUDA kernels yet: its CPU backend takes host arrays."


def run(problem: Problem, answer: Answer) -> None:
    raise BackendError(missing())

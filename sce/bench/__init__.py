"""Benchmarks: every contestant on one scale, against this machine's own limit.

task.py         what is computed: operation, shape, dtype, options; the bytes that must move
suites.py       which tasks, and why these shapes
contestant.py   who computes it: our backends, and (peers/) everyone else
limit.py        what the machine could do: the fastest copy and the fastest read of the same matrix
clock.py        alternating rounds, medians
contest.py      a task and its contestants: checked first, then timed
cold/           what a fresh process pays: import, first call, memory, threads
device/         the same contests on a GPU, in steps that survive each other
document.py     the JSON of a run; findings.py reads it, markdown.py and plots/ show it
"""

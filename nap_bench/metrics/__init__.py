"""Diagnostics: functions of tensors with a seed axis -> [S].

Nothing here reduces over S, so a block of seeds equals each seed alone.
"""

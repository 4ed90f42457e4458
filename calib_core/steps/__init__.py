"""The work of one pipeline component per module: a frozen config, and one function that does the work.

Components, commands and the single-container `calibrate` call these same functions.
"""

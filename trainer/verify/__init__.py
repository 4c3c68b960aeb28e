"""`germinal verify`: is this layout's run the run of one process?"""

"""How sure a segmentation is: members that disagree, what that is worth, and whom a person should look at first.

Nothing here is learned in a federation and nothing is released. Members are models that were released already, seen from
several sides (`views`); each volume is examined by all of them (`examine`); what their agreement means as a Dice is learned
from patients of one house, or from generated ones (`calibration`); patients are put in order by it (`triage`).
"""

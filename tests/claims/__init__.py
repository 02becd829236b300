"""What the course and its papers claim, measured: python tests/claims [name ...]

A short experiment a claim, with the scripts' own data, nets and losses, against a control that
differs in one thing. A file a lesson; lab.py holds what they share, report.py judges and prints.
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))

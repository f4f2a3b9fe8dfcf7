"""Pages and tables for people, made of what a run or a validation has written. Read page.py first, then sources.py."""

from mae.report.faulty_files import print_faults
from mae.report.page import ReportPage, report

__all__ = ["ReportPage", "print_faults", "report"]

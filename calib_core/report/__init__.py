"""The report: one self-contained HTML file, without scripts and without anything fetched from elsewhere."""

from calib_core.report.html import ReportData, render_report, write_page
from calib_core.report.tables import write_report

__all__ = ["ReportData", "render_report", "write_page", "write_report"]

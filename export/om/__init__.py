"""OM files for Atlas devices: ATC, MindSpore Lite, AIPP, and checks against what CANN parses."""

"""The predecessor's table of videos, reports and columns per segment -> a prepared dataset."""

"""De-identification: DICOM headers, burnt-in text, other pictures, tables and reports."""

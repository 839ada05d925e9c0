def report_html(d):
    return ""


def notebook_html(d):
    return ""

// SPDX-License-Identifier: Apache-2.0
//! XML as reference manifests use it, and its canonical form.
//!
//! Parsing is `roxmltree`'s: it refuses document type definitions here, so there are no entities to expand, no default
//! attributes and nothing to fetch. Canonical XML 1.1 without comments is written for what remains: elements,
//! attributes, namespaces and text. Comments, processing instructions, `xml:` attributes and undeclared default
//! namespaces are refused, so that the rules of the standard for them need not be right.

use roxmltree::{Document, Node, NodeType, ParsingOptions};

/// Parses and checks that the canonical form below is exact for this document.
pub(crate) fn parse(bytes: &[u8]) -> Result<Document<'_>, String> {
    if bytes.len() > MAX_XML_LEN {
        return Err(format!("has more than {MAX_XML_LEN} bytes"));
    }
    // What the parser does for each element grows with the square of its attributes, and with all namespaces.
    if bytes.split(|byte| *byte == b'<').any(|part| part.len() > MAX_TAG_LEN) {
        return Err(format!("has more than {MAX_TAG_LEN} bytes between two tags"));
    }
    if bytes.windows(5).filter(|window| *window == b"xmlns").count() > MAX_NAMESPACES {
        return Err(format!("declares more than {MAX_NAMESPACES} namespaces"));
    }
    let text = core::str::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())?;
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let document =
        Document::parse_with_options(text, options).map_err(|error| format!("is no XML that is accepted: {error}"))?;
    for node in document.descendants() {
        check_node(node)?;
    }
    Ok(document)
}

fn check_node(node: Node<'_, '_>) -> Result<(), String> {
    if matches!(node.node_type(), NodeType::Comment | NodeType::PI) {
        return Err("has a comment or a processing instruction".to_owned());
    }
    if node.ancestors().take(MAX_DEPTH + 2).count() > MAX_DEPTH + 1 {
        return Err(format!("has elements more than {MAX_DEPTH} deep"));
    }
    if node.namespaces().any(|namespace| namespace.uri().is_empty()) {
        return Err("undeclares a namespace".to_owned());
    }
    if node.attributes().len() > MAX_ATTRIBUTES {
        return Err(format!("has more than {MAX_ATTRIBUTES} attributes on one element"));
    }
    if node.attributes().any(|attribute| attribute.namespace() == Some(XML_NAMESPACE)) {
        return Err("has an attribute of the xml namespace".to_owned());
    }
    Ok(())
}

/// The canonical form of the subtree at `apex`, without the subtree `left_out`.
///
/// Canonical XML 1.1, section 2.3: an apex inside the document carries all namespaces that are in scope there.
pub(crate) fn canonical(apex: Node<'_, '_>, left_out: Option<Node<'_, '_>>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    write_element(apex, None, left_out, 0, &mut out)?;
    Some(out)
}

fn write_element(
    node: Node<'_, '_>,
    parent: Option<Node<'_, '_>>,
    left_out: Option<Node<'_, '_>>,
    depth: usize,
    out: &mut Vec<u8>,
) -> Option<()> {
    if depth > MAX_DEPTH {
        return None;
    }
    let name = qualified_name(node)?;
    out.push(b'<');
    out.extend(name.as_bytes());
    write_namespaces(node, parent, out);
    write_attributes(node, out)?;
    out.push(b'>');
    for child in node.children().filter(|child| Some(*child) != left_out) {
        match child.node_type() {
            NodeType::Element => write_element(child, Some(node), left_out, depth.saturating_add(1), out)?,
            NodeType::Text => write_text(child.text()?, out),
            NodeType::Root | NodeType::PI | NodeType::Comment => return None,
        }
    }
    out.extend(b"</");
    out.extend(name.as_bytes());
    out.push(b'>');
    Some(())
}

/// Namespaces that the parent in the output does not have: the default one first, then by prefix.
fn write_namespaces(node: Node<'_, '_>, parent: Option<Node<'_, '_>>, out: &mut Vec<u8>) {
    let in_scope = |name: Option<&str>, uri: &str| {
        parent.is_some_and(|parent| parent.namespaces().any(|known| known.name() == name && known.uri() == uri))
    };
    let mut new: Vec<_> = node
        .namespaces()
        .filter(|namespace| namespace.name() != Some("xml") && !in_scope(namespace.name(), namespace.uri()))
        .map(|namespace| (namespace.name().unwrap_or_default(), namespace.uri()))
        .collect();
    new.sort_unstable();
    for (prefix, uri) in new {
        out.extend(if prefix.is_empty() { b" xmlns".as_slice() } else { b" xmlns:" });
        out.extend(prefix.as_bytes());
        write_value(uri, out);
    }
}

/// By namespace, then by local name; those without a namespace first.
fn write_attributes(node: Node<'_, '_>, out: &mut Vec<u8>) -> Option<()> {
    let mut attributes: Vec<_> = node.attributes().collect();
    attributes.sort_unstable_by_key(|attribute| (attribute.namespace().unwrap_or_default(), attribute.name()));
    for attribute in attributes {
        // The length of a name is kept in 16 bits: a longer one would be cut.
        let name = node.document().input_text().get(attribute.range_qname())?;
        if name.rsplit(':').next() != Some(attribute.name()) {
            return None;
        }
        out.push(b' ');
        out.extend(name.as_bytes());
        write_value(attribute.value(), out);
    }
    Some(())
}

/// Section 2.3, "Attribute Nodes".
fn write_value(value: &str, out: &mut Vec<u8>) {
    out.extend(b"=\"");
    for byte in value.bytes() {
        match byte {
            b'&' => out.extend(b"&amp;"),
            b'<' => out.extend(b"&lt;"),
            b'"' => out.extend(b"&quot;"),
            b'\t' => out.extend(b"&#x9;"),
            b'\n' => out.extend(b"&#xA;"),
            b'\r' => out.extend(b"&#xD;"),
            other => out.push(other),
        }
    }
    out.push(b'"');
}

/// Section 2.3, "Text Nodes".
fn write_text(text: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        match byte {
            b'&' => out.extend(b"&amp;"),
            b'<' => out.extend(b"&lt;"),
            b'>' => out.extend(b"&gt;"),
            b'\r' => out.extend(b"&#xD;"),
            other => out.push(other),
        }
    }
}

/// The name with its prefix as it stands in the text: two prefixes may stand for one namespace.
fn qualified_name<'input>(node: Node<'_, 'input>) -> Option<&'input str> {
    let text = node.document().input_text().get(node.range())?.strip_prefix('<')?;
    let end = text.find(|c: char| c.is_ascii_whitespace() || c == '/' || c == '>')?;
    let name = text.get(..end)?;
    (name.rsplit(':').next() == Some(node.tag_name().name())).then_some(name)
}

/// Largest manifest, in bytes. Real ones have about 26,000.
pub const MAX_XML_LEN: usize = 256 * 1024;
const MAX_NODES: u32 = 4096;
const MAX_DEPTH: usize = 16;
const MAX_TAG_LEN: usize = 8 * 1024;
const MAX_NAMESPACES: usize = 16;
const MAX_ATTRIBUTES: usize = 64;
const XML_NAMESPACE: &str = "http://www.w3.org/XML/1998/namespace";

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical_text(xml: &str) -> String {
        let document = parse(xml.as_bytes()).unwrap();
        String::from_utf8(canonical(document.root_element(), None).unwrap()).unwrap()
    }

    #[test]
    fn example_of_the_standard_start_and_end_tags() {
        // Canonical XML 1.1, section 3.3, without its document type and its `xml:space`.
        let xml = "<?xml version='1.0'?>\n<doc>\n   <e1   />\n   <e2   ></e2>\n   <e3   name = \"elem3\"   id=\"elem3\"   />\n   \
                   <e5 a:attr=\"out\" b:attr=\"sorted\" attr2=\"all\" attr=\"I'm\"\n      xmlns:b=\"http://www.ietf.org\"\n      \
                   xmlns:a=\"http://www.w3.org\"\n      xmlns=\"http://example.org\"/>\n</doc>\n";
        let expected = "<doc>\n   <e1></e1>\n   <e2></e2>\n   <e3 id=\"elem3\" name=\"elem3\"></e3>\n   \
                        <e5 xmlns=\"http://example.org\" xmlns:a=\"http://www.w3.org\" xmlns:b=\"http://www.ietf.org\" \
                        attr=\"I'm\" attr2=\"all\" b:attr=\"sorted\" a:attr=\"out\"></e5>\n</doc>";
        assert_eq!(canonical_text(xml), expected);
    }

    #[test]
    fn example_of_the_standard_character_references() {
        // Section 3.4, without its document type and the attribute that it normalises.
        let xml = "<doc>\r\n   <text>First line&#x0d;&#10;Second line</text>\n   <value>&#x32;</value>\n   \
                   <compute><![CDATA[value>\"0\" && value<\"10\" ?\"valid\":\"error\"]]></compute>\n   \
                   <compute expr='value>\"0\" &amp;&amp; value&lt;\"10\" ?\"valid\":\"error\"'>valid</compute>\n   \
                   <norm attr=' &apos;   &#x20;&#13;&#xa;&#9;   &apos; '/>\n</doc>";
        let expected = "<doc>\n   <text>First line&#xD;\nSecond line</text>\n   <value>2</value>\n   \
                        <compute>value&gt;\"0\" &amp;&amp; value&lt;\"10\" ?\"valid\":\"error\"</compute>\n   \
                        <compute expr=\"value>&quot;0&quot; &amp;&amp; value&lt;&quot;10&quot; ?&quot;valid&quot;:&quot;error&quot;\">valid</compute>\n   \
                        <norm attr=\" '    &#xD;&#xA;&#x9;   ' \"></norm>\n</doc>";
        assert_eq!(canonical_text(xml), expected);
    }

    #[test]
    fn an_inner_apex_carries_the_namespaces_in_scope() {
        let document = parse(b"<a xmlns='u:d' xmlns:x='u:x'><x:b y='1'/></a>").unwrap();
        let inner = document.root_element().first_element_child().unwrap();
        let text = String::from_utf8(canonical(inner, None).unwrap()).unwrap();
        assert_eq!(text, "<x:b xmlns=\"u:d\" xmlns:x=\"u:x\" y=\"1\"></x:b>");
        let outer = String::from_utf8(canonical(document.root_element(), Some(inner)).unwrap()).unwrap();
        assert_eq!(outer, "<a xmlns=\"u:d\" xmlns:x=\"u:x\"></a>");
    }

    #[test]
    fn what_is_not_written_is_refused() {
        let bomb = "<!DOCTYPE a [<!ENTITY b 'cc'><!ENTITY d '&b;&b;'>]><a>&d;</a>";
        let deep = format!("{}{}", "<a>".repeat(MAX_DEPTH + 1), "</a>".repeat(MAX_DEPTH + 1));
        let very_deep =
            format!("{}{}", "<a>".repeat(60_000), "</a>".repeat(60_000)).chars().take(MAX_XML_LEN).collect();
        let wide = format!("<a>{}</a>", "<b/>".repeat(5000));
        let long = format!("<a>{}</a>", "x".repeat(MAX_XML_LEN));
        let many = |text: fn(usize) -> String, count| (0..count).map(text).collect::<String>();
        let attributes = format!("<a {}/>", many(|i| format!(" a{i}=''"), 20_000));
        let namespaces = "<a>".to_owned() + &many(|i| format!("<a xmlns:a{i}='u'>"), 200);
        let cases: [String; 14] = [
            attributes,
            namespaces,
            bomb.to_owned(),
            "<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>".to_owned(),
            "<a>&undeclared;</a>".to_owned(),
            "<a><!-- c --></a>".to_owned(),
            "<a><?p i?></a>".to_owned(),
            "<a xml:lang='de'/>".to_owned(),
            "<a xmlns='u'><b xmlns=''/></a>".to_owned(),
            "<a x='1' x='2'/>".to_owned(),
            deep,
            very_deep,
            wide,
            long,
        ];
        for case in cases {
            assert!(parse(case.as_bytes()).is_err(), "{}", case.chars().take(60).collect::<String>());
        }
        assert!(parse(b"<a>\xff</a>").is_err());
    }
}
